"""What each of several devices (ranks) holds and computes of a model whose matrices are divided among them."""
