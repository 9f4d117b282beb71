"""What a run reads: sources give images and labels, `load` makes splits of uint8 tensors, `Batches` makes training batches."""
