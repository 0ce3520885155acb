BINARIES += scheduler
scheduler_DIRS := services/scheduler
