/* Mapped files that somebody cuts short under us: pages that are gone are read as zeros.
 *
 * Bootstraps and chunk maps are mapped, and lie where other programs write. To touch a page behind the end
 * of a mapped file kills the process (SIGBUS), and with it every mount that it serves. Here such a page gets
 * memory of its own, all zeros: of a chunk map that means chunks to be fetched again, of a bootstrap records
 * that no parser accepts. The file is not touched, nor the mapping's other pages.
 */
#ifndef ND_CUT_MAPS_H
#define ND_CUT_MAPS_H

/* From now on, for the whole process. Each page that was lost adds 1 to the eventfd `tell_fd`, which must
 * stay open; -1: nobody is told. 0 or -errno. Any other SIGBUS kills as before. */
int nd_survive_cut_maps(int tell_fd);

#endif
