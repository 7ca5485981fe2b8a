"""Products with weights on a CPU, in machine code that is made for this processor.

XLA's own put every weight in another order before they multiply, at every call. These read weights
once, as they lie, bf16 and packed integers alike, and give a row the same bits whatever is beside
it. `layers` puts them in a network, `registered` has LLVM make them and tells XLA, `shared` is how
XLA calls one and threads share it, `tiles` is the arithmetic, `amx` another where a processor has
it, `weights` how numbers are read and `code` what of LLVM they are written in.
"""
