"""Series of numbers for ptmrun: a kind of data, a data set, a model and an objective. No file of ptmrun is changed."""
