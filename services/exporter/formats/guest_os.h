/* What a provider's guest id says about the operating system. */
#ifndef EXPORTER_GUEST_OS_H
#define EXPORTER_GUEST_OS_H

/* "linux", "windows" or "unknown", from the table of guest ids: the word "linux" inside a full name
 * proves nothing ("Windows Subsystem for Linux host"). */
const char *guest_os_hint(const char *guest_id);
/* CIM_OperatingSystem.OSType as OVF wants it; 1 (other) when the table does not know. */
unsigned int guest_os_cim_type(const char *guest_id);

#endif
