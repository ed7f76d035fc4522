"""How much when: one file a schedule. All count optimizer steps from 0 and reach the final sparsity exactly."""
