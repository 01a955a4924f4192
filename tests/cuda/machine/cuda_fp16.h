#include "cuda_cpu.h"
