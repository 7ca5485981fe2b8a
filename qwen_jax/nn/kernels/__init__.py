"""What one kernel does better than XLA, in Pallas: triton… for NVIDIA GPUs, mosaic… for TPUs.

triton, mosaic: a decode step's attention, from a layer's product on. …_prefill: that of pieces of
prompts. triton_int4, mosaic_quant: integers in groups. layers: norms and gated products on a GPU.
nn.backends chooses attention's, nn.fused the others; work, stored and integers are what they share.
"""
