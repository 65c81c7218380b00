"""The Classifier: an encoder and a head on its features."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sapper.encoders import Encoder


class Classifier(nn.Module):
    """An encoder and a head: a batch of samples to logits (N, K)."""

    def __init__(self, encoder: Encoder, head: nn.Module):
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, images: Tensor) -> Tensor:
        features = F.normalize(self.encoder(images).float(), dim=1)
        with torch.autocast(features.device.type, enabled=False):  # heads are trained in float32
            logits: Tensor = self.head(features)
        return logits
