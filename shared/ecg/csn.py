"""Chapman-Shaoxing-Ningbo 1.0.0 (Zheng et al., doi:10.13026/wgex-er52): 45,152 records, 12 leads, 10 s, 500 Hz.

Layout: WFDBRecords/NN/NNN/JSnnnnn (.hea with SNOMED CT codes in `# Dx:`, .mat); flat copies are read as well. No
reports, no patients. Serves K-MERL and SuPreME (downstream).
"""

from shared.ecg.wfdb_io import cinc_index

NAME = "chapman-shaoxing-ningbo"
FS_HZ = 500.0
read_index = cinc_index
