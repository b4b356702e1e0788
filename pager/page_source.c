#include "pager/page_source.h"

void lm_page_source_shutdown(struct lm_page_source *source) {
    if (source)
        source->operations->shutdown(source);
}

void lm_page_source_close(struct lm_page_source *source) {
    if (source)
        source->operations->close(source);
}
