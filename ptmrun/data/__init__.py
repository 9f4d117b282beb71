"""What a run reads: sources give images or texts and labels, `load` makes the data of a run of them, for all stages.

A kind of data (images.Images, texts.Texts) has

    train val test      splits with labels or none: len, labels, groups, subset(indices), spaced(count), batches(lists), all()
    corpus held         the splits that pretraining reads and is judged by; held is None where probes alone judge it
    classes             names, in the order of the labels
    shape               what a model's `resolve` and `build` are told: (size, channels) or (vocabulary, length)
    preprocessing       what goes with saved weights: (mean, std) or (tokenizer,)
    inputs(device)      makes what splits give to what encoders take
    batches(...)        the epochs.Epochs that train a model on a split
    raw(train)          for logistic regression: matrices of a training split and of the test split, and its C
    settled             {config key: value} of what was auto
    facts notes made unreadable fingerprint noun    for the manifest and the messages
"""
