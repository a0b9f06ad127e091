"""What is believed: graphs are compared with torch, folders are looked into."""
