"""What decoders and encoders share: linear modules with LoRA, dropout, the batch."""
