"""The journal: the commit protocol of the output, and the steps that resume and finish it."""
