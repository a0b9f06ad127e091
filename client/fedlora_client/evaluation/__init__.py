"""How good an adapter is: losses and labels, answers chosen by likelihood, answers that are generated."""
