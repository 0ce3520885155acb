BINARIES += hyperexport
hyperexport_DIRS := services/hyperexport
