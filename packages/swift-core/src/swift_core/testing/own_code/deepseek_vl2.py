"""Stand-in for DeepSeek-VL2: names, signatures and placeholders as published, tiny, with other insides."""

CONFIGURATION = """
from transformers import LlamaConfig, PretrainedConfig
class DeepseekVLV2Config(PretrainedConfig):
    model_type = "deepseek_vl_v2"
    def __init__(self, language_config=None, tile_tag="2D", **kwargs):
        super().__init__(**kwargs)
        self.language_config, self.tile_tag = LlamaConfig(**(language_config or {})), tile_tag
    def to_dict(self):
        return {**super().to_dict(), "language_config": self.language_config.to_dict()}
"""

MODELING = """
import torch
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel
from .configuration_deepseek_vl_v2 import DeepseekVLV2Config
class DeepseekVLV2ForCausalLM(PreTrainedModel):
    config_class = DeepseekVLV2Config
    base_model_prefix = "language"
    def __init__(self, config):
        super().__init__(config)
        size = config.language_config.hidden_size
        self.vision, self.projector = nn.Conv2d(3, size, 14, 14), nn.Linear(size, size)
        self.image_newline, self.view_seperator = nn.Parameter(torch.randn(size)), nn.Parameter(torch.randn(size))
        self.language = LlamaForCausalLM(config.language_config)
        self.post_init()
    def get_input_embeddings(self):
        return self.language.get_input_embeddings()
    def get_output_embeddings(self):
        return self.language.get_output_embeddings()
    def prepare_inputs_embeds(self, input_ids, images=None, images_seq_mask=None, images_spatial_crop=None, **ignore_kwargs):
        if images is None or images_spatial_crop.sum() == 0:
            return self.language.get_input_embeddings()(input_ids)
        embeds = self.language.get_input_embeddings()(input_ids)
        for row in range(len(embeds)):
            features, view = [], 0
            for columns, lines in images_spatial_crop[row].tolist():
                if columns * lines == 0:
                    break
                views = images[row][view : view + 1 + columns * lines]
                view += 1 + columns * lines
                whole, *tiles = self.projector(nn.functional.avg_pool2d(self.vision(views), 2).permute(0, 2, 3, 1))
                grid = torch.cat([torch.cat(tiles[at : at + columns], dim=1) for at in range(0, len(tiles), columns)])
                parts = [torch.cat([part, self.image_newline.expand(len(part), 1, -1)], dim=1).flatten(0, 1) for part in (whole, grid)]
                features += [parts[0], self.view_seperator[None], parts[1]]
            if features:
                embeds[row] = embeds[row].masked_scatter(images_seq_mask[row].unsqueeze(-1), torch.cat(features))
        return embeds
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None, images=None,
                images_seq_mask=None, images_spatial_crop=None, labels=None, use_cache=None, output_attentions=None,
                output_hidden_states=None, return_dict=None, cache_position=None):
        if inputs_embeds is None:
            inputs_embeds = self.prepare_inputs_embeds(input_ids, images, images_seq_mask, images_spatial_crop)
        return self.language(inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids,
                             past_key_values=past_key_values, labels=labels, use_cache=use_cache)
    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, inputs_embeds=None, attention_mask=None, **kwargs):
        return self.language.prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs
        )
"""

PROCESSING = """
import math
import numpy as np
import torch
from transformers.processing_utils import ProcessorMixin
class DeepseekVLV2Processor(ProcessorMixin):
    tokenizer_class = "AutoTokenizer"
    attributes = ["tokenizer"]
    def __init__(self, tokenizer=None, candidate_resolutions=((28, 28), (56, 28)), patch_size=14, downsample_ratio=2, image_token="<image>",
                 sft_format="deepseek", **kwargs):
        self.candidate_resolutions, self.image_size = candidate_resolutions, candidate_resolutions[0][0]
        self.patch_size, self.downsample_ratio, self.image_token, self.sft_format = patch_size, downsample_ratio, image_token, sft_format
        self.image_token_id = tokenizer.get_vocab()[image_token]
        super().__init__(tokenizer, **kwargs)
    def encode(self, text, bos=True, eos=False):
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return [self.tokenizer.bos_token_id] * bos + ids + [self.tokenizer.eos_token_id] * eos
    def tokenize_with_images(self, conversation, images, bos=True, eos=True, cropping=True):
        assert conversation.count(self.image_token) == len(images)
        views, mask, crop, counts, ids = [], [], [], [], []
        texts = conversation.split(self.image_token)
        for text, image in zip(texts, images):
            ids += self.encode(text, bos=False)
            mask += [False] * (len(ids) - len(mask))
            wide = cropping and image.width > image.height
            width, height = self.candidate_resolutions[-1 if wide else 0]
            cut = image.resize((width, height))
            edge = self.image_size
            parts = [image.resize((edge, edge))]
            parts += [cut.crop((x, y, x + edge, y + edge)) for y in range(0, height, edge) for x in range(0, width, edge)]
            views += [torch.tensor(np.asarray(part.convert("RGB"), dtype=np.float32) / 127.5 - 1).permute(2, 0, 1) for part in parts]
            columns, lines = width // edge, height // edge
            crop.append([columns, lines])
            side = math.ceil(edge // self.patch_size / self.downsample_ratio)
            made = [self.image_token_id] * (side * (side + 1) + 1 + lines * side * (columns * side + 1))
            ids += made
            mask += [True] * len(made)
            counts.append(len(made))
        ids += self.encode(texts[-1], bos=False)
        mask += [False] * (len(ids) - len(mask))
        return ids, views, mask, crop, counts
"""
