"""Products with weights and attention on a CPU, in machine code that is made for this processor.

XLA's own put every weight in another order before they multiply, at every call. These read weights
once, as they lie, bf16 and packed integers alike, and give a row the same bits whatever is beside
it. XLA's attention is a dozen of operations for every 64 keys, and widens 16-bit ones.

`kinds` is what there is. `layers` puts products in a network, and `attend` is a form of attention
(nn.backends). `registered` has LLVM make them and tells XLA, `shared` is how XLA calls one and
threads share it. `products` is one of x with weights: `tiles` is its arithmetic, `amx` another
where a processor has it. `attention` stores and attends, `softmax` is what it does at a block of
keys. `weights` is how numbers are read, `vectors` functions of them, `code` what of LLVM all are
written in.
"""
