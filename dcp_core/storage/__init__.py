"""What users call: the DCP storage writer and reader, and the checkpoint URL and options behind them."""
