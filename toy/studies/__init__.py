"""The studies: every module here defines one."""
