"""Verbs that train: demo, pretrain, finetune."""
