"""CPSC2018 (Liu et al., JMIHI 8:1368, 2018) as the PhysioNet/CinC 2020/2021 challenges ship it
(doi:10.13026/34va-7q14).

6,877 records A0001 .. A6877, 12 leads, 500 Hz, 6 to 144 s; WFDB headers with SNOMED CT codes in `# Dx:`, samples in
.mat files, flat or in g1/, g2/ ... No reports, no patients. Serves K-MERL and SuPreME (downstream), and the
simulator's second hospital.
"""

from shared.ecg.wfdb_io import cinc_index

NAME = "cpsc2018"
FS_HZ = 500.0
read_index = cinc_index
