//! Compressed models as safetensors files.
