"""Stand-in for the repository of MiniCPM-V 2.6: names, signatures and placeholders as published, tiny, with other insides."""

CONFIGURATION = """
from transformers import Qwen2Config
class MiniCPMVConfig(Qwen2Config):
    model_type = "minicpmv"
    def __init__(self, query_num=4, patch_size=14, version="2.6", **kwargs):
        self.query_num, self.patch_size, self.version = query_num, patch_size, version
        super().__init__(**kwargs)
"""

MODELING = """
import torch
from torch import nn
from transformers import Qwen2ForCausalLM, Qwen2PreTrainedModel
from .configuration_minicpm import MiniCPMVConfig
class Resampler(nn.Module):
    def __init__(self, queries, size):
        super().__init__()
        self.queries, self.proj = queries, nn.Linear(size, size)
    def forward(self, x):
        return self.proj(nn.functional.adaptive_avg_pool1d(x.T[None], self.queries)[0].T)
class MiniCPMV(Qwen2PreTrainedModel):
    config_class = MiniCPMVConfig
    def __init__(self, config):
        super().__init__(config)
        self.llm = Qwen2ForCausalLM(config)
        self.vpm = nn.Linear(3 * config.patch_size**2, config.hidden_size)
        self.resampler = Resampler(config.query_num, config.hidden_size)
        self.terminators = ["<|im_end|>", "<|endoftext|>"]
        self.post_init()
    def get_input_embeddings(self):
        return self.llm.get_input_embeddings()
    def get_output_embeddings(self):
        return self.llm.lm_head
    def get_vllm_embedding(self, data):
        patch = self.config.patch_size
        embeds = self.llm.model.embed_tokens(data["input_ids"])
        rows = []
        for row, slices in enumerate(data["pixel_values"]):
            assert len(slices) == len(data["tgt_sizes"][row]) == len(data["image_bound"][row])
            current = embeds[row]
            for pixels, size, bound in zip(slices, data["tgt_sizes"][row], data["image_bound"][row]):
                assert pixels.shape[-1] // patch == size[0] * size[1]
                features = self.resampler(self.vpm(pixels.unfold(2, patch, patch).permute(2, 0, 1, 3).flatten(1)))
                places = torch.arange(bound[0], bound[1])[:, None].expand_as(features)
                current = current.scatter(0, places, features)
            rows.append(current)
        return torch.stack(rows), None
    def forward(self, data, **kwargs):
        embeds, _ = self.get_vllm_embedding(data)
        return self.llm(input_ids=None, position_ids=data["position_ids"].long(), inputs_embeds=embeds, **kwargs)
    def _decode(self, inputs_embeds, tokenizer, attention_mask, decode_text=False, **kwargs):
        ends = [tokenizer.convert_tokens_to_ids(word) for word in self.terminators]
        return self.llm.generate(inputs_embeds=inputs_embeds, pad_token_id=0, eos_token_id=ends, attention_mask=attention_mask, **kwargs)
    def generate(self, input_ids=None, pixel_values=None, tgt_sizes=None, image_bound=None, attention_mask=None, tokenizer=None,
                 vision_hidden_states=None, return_vision_hidden_states=False, stream=False, decode_text=False, **kwargs):
        assert input_ids is not None
        assert len(input_ids) == len(pixel_values)
        data = {"input_ids": input_ids, "image_bound": image_bound, "pixel_values": pixel_values, "tgt_sizes": tgt_sizes}
        with torch.inference_mode():
            embeds, _ = self.get_vllm_embedding(data)
            return self._decode(embeds, tokenizer, attention_mask, decode_text=decode_text, **kwargs)
"""

PROCESSING = """
import numpy as np
import torch
from transformers import AutoImageProcessor
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.processing_utils import ProcessorMixin
class MiniCPMVImageProcessor(BaseImageProcessor):
    model_input_names = ["pixel_values"]
    def __init__(self, max_slice_nums=3, scale_resolution=28, patch_size=14, image_feature_size=4, version=2.6, **kwargs):
        super().__init__(**kwargs)
        self.max_slice_nums, self.scale_resolution, self.patch_size = max_slice_nums, scale_resolution, patch_size
        self.image_feature_size, self.version = image_feature_size, version
    def get_sliced_grid(self, image_size, max_slice_nums=None):
        return (2, 1) if image_size[0] > 2 * self.scale_resolution else None
    def get_slice_image_placeholder(self, image_size, image_idx=0, max_slice_nums=None, use_image_id=None):
        marks = "<unk>" * self.image_feature_size
        text = f"<image_id>{image_idx}</image_id><image>{marks}</image>"
        grid = self.get_sliced_grid(image_size)
        return text + (f"<slice>{marks}</slice>" * (grid[0] * grid[1]) if grid else "")
    def preprocess(self, images, do_pad=True, max_slice_nums=None, return_tensors=None, **kwargs):
        pixels, sizes, grids = [], [], []
        for row in images:
            made = []
            for image in row:
                edge = self.scale_resolution
                grid = self.get_sliced_grid(image.size)
                views = [image.resize((edge, edge))]
                if grid:
                    wide = image.resize((grid[0] * edge, grid[1] * edge))
                    corners = [(x * edge, y * edge) for y in range(grid[1]) for x in range(grid[0])]
                    views += [wide.crop((x, y, x + edge, y + edge)) for x, y in corners]
                for view in views:
                    tensor = torch.tensor(np.asarray(view.convert("RGB"), dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)
                    parts = tensor.unfold(1, self.patch_size, self.patch_size).unfold(2, self.patch_size, self.patch_size)
                    made.append(parts.permute(0, 3, 1, 2, 4).reshape(3, self.patch_size, -1))
            side = self.scale_resolution // self.patch_size
            pixels.append(made)
            sizes.append([image.size for image in row])
            grids.append(torch.tensor([[side, side]] * len(made), dtype=torch.int32))
        return BatchFeature(data={"pixel_values": pixels, "image_sizes": sizes, "tgt_sizes": grids})
    def __call__(self, images, **kwargs):
        return self.preprocess(images, **kwargs)
class MiniCPMVProcessor(ProcessorMixin):
    attributes = ["image_processor", "tokenizer"]
    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"
    def __init__(self, image_processor=None, tokenizer=None):
        super().__init__(image_processor, tokenizer)
        self.version = image_processor.version
"""
