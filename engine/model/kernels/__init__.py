"""Kernels for the devices: C++ for CPUs, Triton for CUDA; they compute and decide nothing."""
