"""Where the operator's key comes from, if no file names it."""

ADMIN_ENV = "FEDLORA_ADMIN_KEY"
