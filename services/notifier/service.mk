BINARIES += notifier
notifier_DIRS := services/notifier
