"""`mooring demo`: the whole loop on real parts and real data, from a trained model to a drift alert and back."""
