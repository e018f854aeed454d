"""PLIF spiking networks (Fang et al., ICCV 2021) for PyTorch Lightning."""
