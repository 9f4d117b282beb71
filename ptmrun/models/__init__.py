"""One file a model family: `resolve(options, size, channels)` fills in what is auto, `build(...)` makes the encoder.

PUBLISHED names the weights that there are by `kind`, AS_PUBLISHED what is auto in models that take them, SHAPE the keys of a
folder's config.json that say which of SIZES it holds, or how many layers and heads of which width; `fitting(options, size)` gives
the side of images that a model of fixed options takes, where not every side will do.

An encoder knows nothing of the objective it serves. What objectives and stages may ask of it:

    width, depth                     of its features and in blocks
    features(images)                 [B, C, S, S] -> [B, width]
    depth_of(name)                   a parameter's block: 0 embeddings, 1 ... depth, depth + 1 the rest
    net, kind                        the library's network, and its name in the file's PUBLISHED
    save(folder), load(folder)       in the library's own format
    classifier(head, auxiliary, classes)    the library's own, with this encoder's weights; None where it has none
    adjusted(tensors)                weights from other images as this encoder takes them, and notes on what was changed
    those that learn something from images before training: fit(images) -> buffers, fitted(folder) -> those of a saved encoder
    those whose features come from a layer: layer, layer_features(images) -> [B, depth, width], choose(layers' scores), trim()
    those with tokens: vocabulary, unit, tokens(images), next_tokens(images) as below, logits(tokens), complete(tokens, noise),
                        images(tokens)
    those with patches: patch, grid, embed(images), positions, encode(tokens, last), attention(images)
    those with maps:    feature_map(images) [B, C, S, S] -> [B, D, h, w], map_shape (D, h = w), above_map
                        (modules between map and features), cam_layers (the modules that end a stage, the last of them
                        the map), resize (the side images are scaled to)
    those with an auxiliary branch: auxiliary() switches it on; then both(images) -> (features, auxiliary features)

Families of text have SIZES, FRAMING (special tokens) and TOKENIZER (its kind), resolve(options, vocabulary, length) and
build(options, vocabulary, length, attention). Their encoders take Tokens instead of images, and beside width, depth, kind,
depth_of, load and adjusted they have:

    vocabulary, length, unit         what tokens there are, and how many of them a text has at most
    hidden(tokens)                   [B, T] -> [B, T, D]; no padding influences what is no padding; and with tokens.documents
                                     no document another one, here and in all that follows
    logits(hidden)                   of chosen positions, [n, D] -> float32 [n, vocabulary]
    features(tokens)                 [B, T] -> [B, width]
    save(folder, tokenizer), trim()
    those of masked tokens and pairs: next_sentence(hidden) -> [B, 2], pair_head (the modules that it alone needs)
    those that read in one direction: next_tokens(tokens) -> (logits [n, vocabulary], the tokens themselves [n]),
                                      generate(tokens, noise, temperature, top_k, top_p)
"""
