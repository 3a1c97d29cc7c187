"""The agent formats that come with swift-core."""

from __future__ import annotations

from collections.abc import Iterator

from swift_core.specs import AgentSpec

_TABLE = (
    ("hermes", "hermes:HERMES", "JSON between <tool_call> marks (Hermes, Qwen 2.5, Qwen 3)"),
    ("qwen_en", "qwen:QWEN_EN", "lines ✿FUNCTION✿ and ✿ARGS✿, told in English"),
    ("qwen_zh", "qwen:QWEN_ZH", "lines ✿FUNCTION✿ and ✿ARGS✿, told in Chinese"),
    ("react_en", "react:REACT_EN", "lines Action: and Action Input:, told in English"),
    ("react_zh", "react:REACT_ZH", "lines Action: and Action Input:, told in Chinese"),
    ("toolbench", "react:TOOLBENCH", "ToolBench: lines Thought:, Action: and Action Input:"),
    ("llama3", "llama:LLAMA3", "Llama 3: bare JSON with name and parameters"),
    ("llama4", "llama:LLAMA4", "Llama 4: a list of Python calls"),
    ("chatglm4", "glm:GLM4", "ChatGLM 4: the name, and JSON on the next line"),
    ("glm4", "glm:GLM4", "GLM-4: the name, and JSON on the next line"),
    ("glm4_5", "glm:GLM4_5", "GLM-4.5: <arg_key> and <arg_value> between <tool_call> marks"),
    ("glm4_7", "glm:GLM4_7", "GLM-4.7: as glm4_5, without line breaks"),
    ("deepseek_v3_1", "deepseek:DEEPSEEK_V3_1", "DeepSeek V3.1: JSON between special tokens"),
    ("deepseek_v4", "deepseek:DEEPSEEK_V4", "DeepSeek V4: <｜DSML｜invoke name=...> in a block of <｜DSML｜tool_calls>"),
    ("gemma4", "gemma:GEMMA4", 'Gemma 4: call:NAME{key:<|"|>text<|"|>} between <|tool_call> marks'),
    ("hunyuan_hermes", "hunyuan:HUNYUAN", "Hunyuan dense models: the name, and JSON in a fence, between <tool_call> marks"),
    ("hy_v3_preview", "hunyuan:HY_V3_PREVIEW", "Hy3 preview: <arg_key> and <arg_value> in a block of <tool_calls>"),
    ("hy_v3", "hunyuan:HY_V3", "Hy3: as hy_v3_preview, every tag with :opensource"),
    ("youtu", "hunyuan:YOUTU", "Youtu-LLM: JSON between <tool_call> marks, tools between marks of their own"),
    ("minicpm5", "minicpm:MINICPM5", "MiniCPM 5: <function name=...> and <param name=...>"),
    ("minimax_m3", "minimax:MINIMAX_M3", "MiniMax M3: <invoke name=...> and an element for each argument, all tags marked"),
    ("kimi_k3", "kimi:KIMI_K3", "Kimi K3: tags of special tokens for tools, calls and arguments"),
    ("mistral", "mistral:MISTRAL", "Mistral: [TOOL_CALLS]name[ARGS]{...}"),
    ("qwen3_coder", "tagged:QWEN3_CODER", "Qwen3-Coder: <function=...> and <parameter=...>"),
    ("qwen3_5", "tagged:QWEN3_5", "Qwen 3.5: as qwen3_coder, tools as JSON"),
    ("seed_oss", "tagged:SEED_OSS", "Seed-OSS: <function=...> between <seed:tool_call> marks"),
    ("minimax_m2", "tagged:MINIMAX_M2", "MiniMax M2: <invoke name=...> and <parameter name=...>"),
    ("gpt_oss", "harmony:GPT_OSS", "gpt-oss (harmony): commentary to=functions.NAME"),
    ("kimi_k2", "kimi:KIMI_K2", "Kimi K2: a section of calls between special tokens"),
)


def read_agents() -> Iterator[AgentSpec]:
    """Yield the specs of the table."""
    for name, target, summary in _TABLE:
        yield AgentSpec(name=name, summary=summary, target=f"swift_core.templates.agents.{target}")
