"""The network's shape as plain numbers, printed in the notation of Table S1."""

from dataclasses import dataclass

_NEURON = {"plif": "PLIF", "lif": "LIF", "if": "IF"}
_POOL = {"max": "MP", "avg": "AP"}


def _repeat(part: str, times: int) -> str:
    return part if times == 1 else f"{{{part}}}*{times}"


@dataclass(frozen=True)
class Structure:
    """Arguments of Tables 1 and S1; `str()` is the network's row of Table S1.

    `dropout` is p before each FC layer; a layer without dropout has no DP in its string.
    """

    n_conv: int
    n_down: int
    channels: int
    fc_features: tuple[int, ...]
    dropout: tuple[float, ...]
    votes_per_class: int
    neuron: str
    pooling: str
    folded: bool = False

    def __str__(self) -> str:
        neuron = _NEURON[self.neuron]
        conv = _repeat(f"c{self.channels}k3s1-{'' if self.folded else 'BN-'}{neuron}", self.n_conv)
        # Table S1 keeps the braces around a stage even where it is not repeated inside.
        parts = [_repeat(f"{conv}-{_POOL[self.pooling]}k2s2", self.n_down)]
        fcs = [
            f"{'DP-' if p > 0 else ''}FC{features}-{neuron}"
            for features, p in zip(self.fc_features, self.dropout, strict=True)
        ]
        hidden, out = fcs[:-1], fcs[-1]
        parts += [_repeat(hidden[0], len(hidden))] if len(set(hidden)) == 1 else hidden
        votes = self.votes_per_class
        return "-".join([*parts, out, f"APk{votes}s{votes}"])
