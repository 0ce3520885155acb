/* Keys of an export's task records (docs/tasks.md). */
#ifndef EXPORTER_EXPORT_KEYS_H
#define EXPORTER_EXPORT_KEYS_H

#define EXPORT_KEY_STARTED     "export.started"
#define EXPORT_KEY_ID          "export.id"
#define EXPORT_KEY_VM          "export.vm"
#define EXPORT_KEY_VOLUME      "export.volume"
#define EXPORT_KEY_DIR         "export.dir"
#define EXPORT_KEY_STEM        "export.stem"
#define EXPORT_KEY_BASE        "export.base"
#define EXPORT_KEY_GENERATION  "export.generation"
#define EXPORT_KEY_RELEASED    "export.released"
#define EXPORT_KEY_CDROMS      "export.cdroms"
#define EXPORT_KEY_UPLOAD      "upload." /* and the file's number in the plan */
#define EXPORT_KEY_UPLOAD_URL  "upload.url"
#define EXPORT_KEY_UPLOAD_DONE "upload.done"
#define EXPORT_KEY_FAILED      "failed." /* and the type of a step that the export went on without */

#endif
