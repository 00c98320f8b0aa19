"""What can be asked of one running vLLM: it is started once for all of this folder."""
