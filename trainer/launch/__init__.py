"""This process's place among the others, from the environment that `accelerate launch` gave it to the Accelerator.

environment.py     what is asked of this process: LaunchEnv; its cores and threads
process_group.py   what rank 0 does before the ranks meet, forming the group
accelerator.py     the one Accelerator, the seeds of the random streams
compile_choice.py  whether torch.compile is used
logging_setup.py   console and train.log
"""
