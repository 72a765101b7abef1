"""From a neural network to an FPGA overlay. hls4ml and the compilers run only in child processes, see `host`."""
