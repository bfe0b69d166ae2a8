"""Directories: what S3 lists, under what is pending."""
