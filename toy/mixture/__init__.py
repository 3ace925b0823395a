"""The reversed mixture: how a policy is judged, and the methods that learn one."""
