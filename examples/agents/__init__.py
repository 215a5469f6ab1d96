"""Multi-agent programs over any OpenAI-compatible server. One file a program, each a module to run.

python -m examples.agents.guessing_game --num-participants 20 --num-steps 5
"""
