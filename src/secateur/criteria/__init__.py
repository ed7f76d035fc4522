"""How badly a weight would be missed: one file a criterion; the file's name is the criterion's name."""
