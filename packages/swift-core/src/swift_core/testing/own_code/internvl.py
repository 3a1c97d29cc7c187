"""Stand-in for the repository of InternVL 2.5: names, signatures and placeholders as published, tiny, with other insides."""

CONFIGURATION = """
from transformers import PretrainedConfig, Qwen2Config
class InternVisionConfig(PretrainedConfig):
    model_type = "intern_vit_6b"
    def __init__(self, hidden_size=16, image_size=56, patch_size=14, **kwargs):
        self.hidden_size, self.image_size, self.patch_size = hidden_size, image_size, patch_size
        super().__init__(**kwargs)
class InternVLChatConfig(PretrainedConfig):
    model_type = "internvl_chat"
    is_composition = True
    def __init__(self, vision_config=None, llm_config=None, force_image_size=None, downsample_ratio=0.5, dynamic_image_size=False,
                 use_thumbnail=False, min_dynamic_patch=1, max_dynamic_patch=6, **kwargs):
        super().__init__(**kwargs)
        self.vision_config, self.llm_config = InternVisionConfig(**(vision_config or {})), Qwen2Config(**(llm_config or {}))
        self.force_image_size, self.downsample_ratio, self.dynamic_image_size = force_image_size, downsample_ratio, dynamic_image_size
        self.use_thumbnail, self.min_dynamic_patch, self.max_dynamic_patch = use_thumbnail, min_dynamic_patch, max_dynamic_patch
    def to_dict(self):
        output = super().to_dict()
        return {**output, "vision_config": self.vision_config.to_dict(), "llm_config": self.llm_config.to_dict()}
"""

MODELING = """
import torch
from torch import nn
from transformers import PreTrainedModel, Qwen2ForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast
from .configuration_internvl_chat import InternVLChatConfig
class InternVLChatModel(PreTrainedModel):
    config_class = InternVLChatConfig
    main_input_name = "pixel_values"
    base_model_prefix = "language_model"
    def __init__(self, config, vision_model=None, language_model=None, use_flash_attn=True):
        super().__init__(config)
        size, self.patch = config.vision_config.hidden_size, config.vision_config.patch_size
        self.vision_model = nn.Conv2d(3, size, self.patch, self.patch)
        self.language_model = Qwen2ForCausalLM(config.llm_config)
        self.mlp1 = nn.Sequential(nn.LayerNorm(4 * size), nn.Linear(4 * size, config.llm_config.hidden_size))
        self.img_context_token_id = None
        self.post_init()
    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()
    def get_output_embeddings(self):
        return self.language_model.get_output_embeddings()
    def extract_feature(self, pixel_values):
        grid = self.vision_model(pixel_values)
        return self.mlp1(nn.functional.pixel_unshuffle(grid, 2).flatten(2).transpose(1, 2))
    def forward(self, pixel_values, input_ids=None, attention_mask=None, position_ids=None, image_flags=None, past_key_values=None,
                labels=None, use_cache=None, output_attentions=None, output_hidden_states=None, return_dict=None):
        image_flags = image_flags.squeeze(-1)
        embeds = self.language_model.get_input_embeddings()(input_ids).clone()
        features = self.extract_feature(pixel_values)[image_flags == 1]
        batch, length, size = embeds.shape
        embeds = embeds.reshape(-1, size)
        selected = input_ids.reshape(-1) == self.img_context_token_id
        embeds[selected] = embeds[selected] * 0.0 + features.reshape(-1, size)
        outputs = self.language_model(inputs_embeds=embeds.reshape(batch, length, size), attention_mask=attention_mask,
                                      position_ids=position_ids, past_key_values=past_key_values, use_cache=use_cache)
        return CausalLMOutputWithPast(loss=None, logits=outputs.logits, past_key_values=outputs.past_key_values)
    @torch.no_grad()
    def generate(self, pixel_values=None, input_ids=None, attention_mask=None, visual_features=None, generation_config=None,
                 output_hidden_states=None, **generate_kwargs):
        assert self.img_context_token_id is not None
        embeds = self.language_model.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            embeds[input_ids == self.img_context_token_id] = self.extract_feature(pixel_values).flatten(0, 1)
        return self.language_model.generate(inputs_embeds=embeds, attention_mask=attention_mask, generation_config=generation_config,
                                            output_hidden_states=output_hidden_states, use_cache=True, **generate_kwargs)
"""
