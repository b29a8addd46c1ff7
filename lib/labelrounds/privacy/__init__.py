"""What keeps patients' names out: de-identification of files, and refusal of those that still carry names."""
