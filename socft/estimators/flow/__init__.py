"""Methods of 2025 and 2026 for flow models: on paths of the sampler, and on re-noised samples."""
