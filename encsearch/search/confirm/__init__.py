"""The finalists: who is trained again from scratch, who wins, how sure that is."""
