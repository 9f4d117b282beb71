"""Pictures, tables, sentences and pages; nothing here knows how a score was made."""
