"""From scores to text: choosing tokens, and writing them out."""
