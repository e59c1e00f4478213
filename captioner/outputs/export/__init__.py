"""What an output becomes when all is done: any format, made anew from the journal."""
