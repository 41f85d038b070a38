"""The golden cases where this project differs on purpose, each with its reason.

A key is a part of the case's full name, `kind/case`. The checkers put a tag in square brackets into
the name of a case that a known defect of the reference has shaped.
"""

DIFFERENCES: dict[str, str] = {
    "[paddings-count]": (
        "the reference cuts or fills a list of paddings of the wrong length, or crashes on it; "
        "here the number of paddings must be the number of sections"
    ),
    "[sections-by-fps]": (
        "the reference turns --video_sections into seconds by --fps and back by 30, which changes "
        "the number; here it is the number of sections"
    ),
    "[decode-by-seconds]": (
        "the reference decodes --video_sections as if the clip were --video_seconds long and loses "
        "its end; here all of it is decoded"
    ),
}
