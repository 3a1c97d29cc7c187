"""Training on answers that people or models have judged: pairs (DPO, CPO, SimPO, ORPO) and single answers (KTO)."""
