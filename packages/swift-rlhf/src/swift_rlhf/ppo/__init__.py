"""PPO: answers of the model itself, each token compared with what a critic expected (Schulman et al. 2017)."""
