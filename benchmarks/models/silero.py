"""silero VAD at 16 kHz: four convolutions over spectra, an LSTM cell over chunks of 32 ms, one probability a chunk."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SileroVAD(nn.Module):
    """Chunks of 576 samples, 64 of them the end of the chunk before: ``[batch, chunks, 576]`` to ``[batch, chunks]``."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, chunks: Tensor) -> Tensor:
        state, found = None, []
        for k in range(chunks.shape[1]):
            state = self.lstm_cell(self.seen(chunks[:, k]), state)
            found.append(torch.sigmoid(self.final_conv(F.relu(state[0]).unsqueeze(2))).flatten(1))
        return torch.cat(found, 1)

    def seen(self, chunk: Tensor) -> Tensor:
        """The features of one chunk, ``[batch, 128]``."""
        real, imaginary = self.stft_conv(F.pad(chunk.unsqueeze(1), (0, 64), "reflect")).chunk(2, 1)
        x = torch.sqrt(real**2 + imaginary**2)
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.relu(layer(x))
        return x.squeeze(2)
