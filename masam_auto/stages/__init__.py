"""The method, one file a step: verify, fingerprint, plan, preprocess, train, predict, evaluate."""
